"""What the gateway tells about itself: the request log, metrics and analytics."""
