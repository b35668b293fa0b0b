"""Jobs to pixels: cached models and heads, guided sampling, results; knows torch, never HTTP."""
