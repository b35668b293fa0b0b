"""What a readout head is: network, taps, manifest, weights, training; never jobs or HTTP."""
