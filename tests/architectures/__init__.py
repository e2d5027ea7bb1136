"""The proof of the resolver: every architecture of transformers, tiny and random, resolved, checked (`make arch`)."""
