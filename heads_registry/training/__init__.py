"""Training of readout heads on a frozen base model: recipe, data, losses, one loop."""
