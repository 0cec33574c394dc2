"""What models are trained on by reinforcement: tasks, rewards that a program gives, tools."""
