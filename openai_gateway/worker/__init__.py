"""The MLX inference worker: a child process that owns one model. The only code that imports mlx."""
