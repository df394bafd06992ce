"""What a person sees on the terminal: progress and durations."""
