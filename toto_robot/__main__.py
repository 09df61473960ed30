"""`python -m toto_robot` is the console script."""

from toto_robot.cli import main

if __name__ == "__main__":
    main()
