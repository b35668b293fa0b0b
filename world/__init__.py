"""The mannequin world: knows scenes, renders, labels and datasets; must never know torch, heads,
jobs, workers or HTTP."""
