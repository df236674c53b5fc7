"""What settings of image and video processors mean to the runtime."""
