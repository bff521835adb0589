"""What is wrong with the data, in one sentence for the person who can put it right."""


class DataError(ValueError):
    """Data that cannot be prepared; the message names the place and the way out."""
