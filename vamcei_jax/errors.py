"""The error that a user's input can cause."""


class InputError(Exception):
  """Input that cannot be used. The message is one line that names the file or field and what to do.

  Command lines print it as `error: MESSAGE` on stderr and exit with code 2.

  Example:
    >>> try:
    ...   segmenter("patient1.nii.gz")
    ... except vamcei_jax.errors.InputError as error:
    ...   print(error)
  """
