"""Pictures of what a policy kept."""
