"""Small trainings that show where ``backend="sat"`` goes; each is a script of its own."""
