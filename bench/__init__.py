"""Speed and memory of ffkern next to eager PyTorch, torch.compile and the machine's floor."""
