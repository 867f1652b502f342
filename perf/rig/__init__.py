"""The measuring rig: peers, origin, scenarios, and what they are judged by."""
