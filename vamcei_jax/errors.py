"""The one error that a user's input can cause."""


class InputError(Exception):
  """Input that cannot be used. Its message is one line that names the file or field and the way out.

  Command lines print it as `error: MESSAGE` on stderr and exit with code 2.
  """
