"""What a call, an event, an import and a long run cost, beside other clients: ``python -m tests.bench``."""
