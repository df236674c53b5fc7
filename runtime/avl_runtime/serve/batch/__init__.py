"""Files of requests: each line is asked as a client of the server would, each answer is a line."""
