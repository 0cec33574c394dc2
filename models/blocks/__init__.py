"""The parts that decoders are composed of: one idea to a file."""
