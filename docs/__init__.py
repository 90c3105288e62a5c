"""What the pages are made with: the reference from the program, the pictures from programs that run."""
