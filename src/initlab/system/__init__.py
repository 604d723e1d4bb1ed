"""What the operating system gives: terminal, files, processes, memory and cores, the user's imports."""
