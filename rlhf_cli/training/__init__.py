"""What stages that train around a transformers Trainer share."""
