"""What a file promises, whether it is well formed, and how it behaves off the beaten track."""
