"""The quality of human feedback: votes on pairs, labels made of them, agreement, annotators and bias."""
