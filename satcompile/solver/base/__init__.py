"""What both formulations stand on: the memory simulator, compiled code, a quiet HiGHS."""
