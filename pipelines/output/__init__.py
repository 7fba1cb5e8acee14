"""What a command writes: where, whose it is, checkpoints, who computed it, and the records beside it."""
