"""What everything stands on: checks at the door, mapping over draws, named keys, errors of estimates."""
