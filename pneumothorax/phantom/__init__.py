"""The demo data: chest phantoms, written like the SIIM-ACR data in two layouts."""
