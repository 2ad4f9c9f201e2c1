"""What models are trained on: real data that every machine has, or synthesised data whose truth is known."""
