"""One file a family: how its users would write it, for one device, and the presets that its paper names."""
