"""LoRA adapters as PEFT writes them, merged into the weights of a package tensor by tensor."""
