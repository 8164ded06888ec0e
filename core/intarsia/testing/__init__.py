"""What plugins and models are tested with."""
