// A page opened from disk may not read other files, so the search shows titles there, without a piece of each text.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
