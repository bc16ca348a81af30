"""Where jobs live: one contract, several stores."""
