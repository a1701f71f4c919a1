"""What a sweep says about layers: depth, blocks, removal step by step, transplants, geometry."""
