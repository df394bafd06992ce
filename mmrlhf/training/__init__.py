"""What training stages share: settings, a model with its data, the fit, its held-out samples."""
