"""What tests share: builders, fakes and assertions. No test module is imported by another test."""
