# Fits the controller's nginx.tmpl to Debian's nginx: modules are loaded by
# hand, and the stream block goes, for there is no Lua module for streams.

/^pid / && !loaded {
	split("ndk_http_module ngx_http_lua_module ngx_http_headers_more_filter_module ngx_http_set_misc_module", modules, " ")
	for (i = 1; i in modules; i++)
		print "load_module /usr/lib/nginx/modules/" modules[i] ".so;"
	loaded = 1
}

# The controller posts to the stream port at every sync and takes a refusal for
# a failure, so something has to answer there.
/^    # default server, used for NGINX healthcheck/ {
	print "    server { listen 127.0.0.1:{{ .StreamPort }}; access_log off; return 204; }\n"
	answered = 1
}

/^stream \{/ { in_stream = 1; cut = 1 }
!in_stream { print }
/^\}/ { in_stream = 0 }

END {
	if (!(loaded && answered && cut)) {
		print "nginx.tmpl is not the one that these edits were made for" > "/dev/stderr"
		exit 1
	}
}
