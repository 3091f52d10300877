"""Privacy accounting: what was released, what it cost, how much noise it needs."""
