"""What a training will need and how long it will take, told before anything is loaded."""
