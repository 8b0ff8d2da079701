"""Methods of Hugging Face's peft in our training loop, to compare their scores with ours."""
