"""The training loop and what it is made of; shared by training, fine-tuning and QAT."""
