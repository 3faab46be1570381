"""What can be done with files and boards beside a run."""
