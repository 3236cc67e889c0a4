%% @doc Frames against the golden bytes that the Python side writes and reads as well.
-module(framework_adapter_frame_tests).

-include_lib("eunit/include/eunit.hrl").

-define(VECTORS, "tests/vectors/wire/frames.txt").

vectors() ->
    {ok, Text} = file:read_file(?VECTORS),
    Lines = [L || L <- binary:split(Text, <<"\n">>, [global]), L =/= <<>>, binary:first(L) =/= $#],
    [vector(binary:split(L, <<" ">>, [global])) || L <- Lines].

vector([Name, _Number, Kind, Flags, Slot, CallId, Fence, Payload, Whole]) ->
    <<_Length:32, Frame/binary>> = binary:decode_hex(Whole),
    {binary_to_existing_atom(Name), [binary_to_integer(N) || N <- [Kind, Flags, Slot, CallId, Fence]],
     case Payload of <<"-">> -> <<>>; Hex -> binary:decode_hex(Hex) end, Frame}.

every_type_is_read_as_it_was_written_test_() ->
    [{atom_to_list(Name), fun() -> check(V) end} || {Name, _, _, _} = V <- vectors()].

check({Name, [Kind, Bits, Slot, CallId, Fence], Payload, Frame}) ->
    {ok, Decoded} = framework_adapter_frame:decode(Frame),
    Flags = [F || {F, Bit} <- [{error, 1}, {stream, 2}, {want_text, 4}], Bits band Bit =/= 0],
    ?assertEqual(#{type => Name, kind => Kind, flags => Flags, slot => Slot, call_id => CallId, fence => Fence, payload => Payload},
                 Decoded#{flags := lists:sort(maps:get(flags, Decoded))}),
    ?assertEqual(Frame, iolist_to_binary(framework_adapter_frame:encode(Name, Kind, Flags, {Slot, CallId}, Fence, Payload))).

no_other_version_or_type_is_read_test() ->
    ?assertEqual({error, {version, 2}}, framework_adapter_frame:decode(<<2, 0:(23 * 8)>>)),
    ?assertEqual({error, {type, 99}}, framework_adapter_frame:decode(<<1, 99, 0:(22 * 8)>>)),
    ?assertEqual({error, short}, framework_adapter_frame:decode(<<1, 1>>)).
