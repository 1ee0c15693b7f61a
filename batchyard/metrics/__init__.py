"""What all processes' metrics have in common; what is counted is each process's own business."""
