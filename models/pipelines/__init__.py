"""Several recipes one after another: what a base model goes through until it is published."""
