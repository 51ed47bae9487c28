"""From a trained model and files to predictions, numbers and pages."""
