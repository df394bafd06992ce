"""What tests stand on: small models, shards, servers, and scripts that run as processes of their own."""
