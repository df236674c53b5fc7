"""Pictures and videos from wherever they come, with limits that hostile ones run into."""
