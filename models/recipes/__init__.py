"""Ways to train a model, each a recipe: what one step of it does, and how it is judged."""
