"""What a sweep says about layers: depth, differences of tasks, blocks, removal step by step, transplants, geometry."""
