"""`python -m ecgchat_lib.course` is `ecgchat course`, for machines where the command isn't on the path."""

from ecgchat_lib.course.cli import main

main()
